"""Which checkpoint goes on the robot: scores, statistics, VSDR, the report. No simulator."""
