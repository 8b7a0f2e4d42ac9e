//! Deployment, ReplicaSet and EndpointSlice controllers.
