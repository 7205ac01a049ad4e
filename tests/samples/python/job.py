"""A job: no server, one container for each event, which is in its environment. The exit code tells how it went."""

import json
import os
import sys

event = os.environ.get("FC_CUSTOM_CONTAINER_EVENT") or os.environ.get("SCF_CUSTOM_CONTAINER_EVENT")
numbers = json.loads(event)["numbers"]
if not numbers:
    sys.exit("no numbers to add")
print("the sum is", sum(numbers))
