from tests.loopback_hub import loopback_hub


__all__ = ["loopback_hub"]
