window(1M) & stride(64) | chunk(128K) | sinks(4_096)
