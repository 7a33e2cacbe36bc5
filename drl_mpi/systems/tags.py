"""Tags of a run's messages: what travels on the world's communicator."""

TAG_UNROLLS = 1
TAG_PARAMETERS = 2
TAG_REPORTS = 3
TAG_SHARDS = 10
"""And the three after it; see ``comm.shards``."""
TAG_REQUESTS = 100
"""And one for every further group of an actor's environments; see ``comm.exchange``."""
