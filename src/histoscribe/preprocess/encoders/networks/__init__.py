"""Networks that encoders show pixels to: one contract, many published architectures."""
