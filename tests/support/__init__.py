"""What several tests share: small sets, small networks, reference implementations."""
