"""The master's durable record. `base` is the contract; one file per implementation."""
