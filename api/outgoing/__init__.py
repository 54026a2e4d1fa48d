"""HTTP that the cluster makes: calls of webhooks and of the endpoints of push workers."""
