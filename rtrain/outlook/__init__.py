"""How long a step of a run takes on given hardware, and what the run costs: arithmetic, before a device is rented."""
