"""The op table: what tgrad computes, by theme."""
