"""What `l4k bench` needs: shapes, timing, rows, report, whole models."""
