"""What measures provscale itself: speed, memory, arithmetic, loading, scaling."""
