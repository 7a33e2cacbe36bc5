"""What a machine can do, and what the jobs make of it.

jobs/bench.py: each stage alone on every core, the whole job, and the ratio
  config.py    the options of every system that can be measured, and the command lines for them
  stage.py     one process of one stage: environment, inference or training, nothing else
  measure.py   runs a stage on every core, and the real job
  report.py    from raw measurements to the numbers of the table and of bench.json
  picture.py   bench.png
  main.py      the command line

python -m drl_mpi.bench.NAME
  versus       predictions per second of A3C and GA3C, for a small and a large network
  sweep        central acting with every fixed setting, and with the one that the tuner finds
  latency      what a request of actions takes, and how evenly thousands are served
  servers      parameter servers against the memory's bandwidth
  replay       memory and time of the replays
  speedup      A3C's time to a score over its workers

what they share
  command.py   a tool's way from its command line to files and an exit code
  runs.py      runs a job for its rows of progress.csv
  tables.py    text in columns
  style.py     the look of all pictures
  asking.py    what the ranks of latency do
"""
