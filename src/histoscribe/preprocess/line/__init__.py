"""The line that fields go through: stages, memory, and parts that outlive a kill."""
