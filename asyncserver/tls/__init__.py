"""TLS: server contexts, what their certificate files say, and OpenSSL's queue of errors."""
