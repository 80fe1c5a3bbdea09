"""Real servers on loopback: object stores, hubs, proxies, Ray clusters."""
