"""What training costs: parameters, FLOPs, memory and time, from shapes alone.

`sketch` builds a model that has shapes and no weights, `flops` counts the work of a step with frozen parts left out,
`memory` what lies on each GPU, `stage` puts them together for one training stage, `lengths` knows its records, and
`devices` what a GPU can do, `report` shows it all. Training uses the same counts for its FLOPs a second.
"""

from revision.costs.devices import DEVICES, Device, device_named, peak_flops
from revision.costs.flops import Counts, Flops, Work, work_of

__all__ = ["DEVICES", "Counts", "Device", "Flops", "Work", "device_named", "peak_flops", "work_of"]
