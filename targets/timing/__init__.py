"""How long does it take, and how sure is that? Clock, measurement, judge, layers, memory."""
