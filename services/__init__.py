"""Online: what answers over HTTP and gRPC. Imports `understudy`, never `training`."""
