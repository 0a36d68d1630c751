"""A policy behind a socket, and the ROS side of that socket."""
