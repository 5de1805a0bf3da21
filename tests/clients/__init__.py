"""The clients that people really use: vendors' SDKs for Python and Node, and curl."""
