"""The PROXY protocol: headers of proxies, and which proxies are believed."""
