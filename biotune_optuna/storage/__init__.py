"""Where studies are kept: any SQL database or a journal file, through losses of connection."""

import os

# gRPC's handlers of a fork make a child that only starts another program crash now and then. It
# reads this when it is imported; no child here uses a connection of its parent's.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
