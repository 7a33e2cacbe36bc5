"""What a machine can do and what the whole job makes of it: the work behind jobs/bench.py.

config.py    the options, and the job's command line for them
stage.py     one process of one stage: environment, inference or training, nothing else
measure.py   runs a stage on every core, and the real job
report.py    from raw measurements to the numbers of the table and of bench.json
picture.py   bench.png
main.py      the command line
"""
