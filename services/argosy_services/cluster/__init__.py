"""What only a fleet on Ray Serve needs: engines behind handles, routing, scaling, and the cluster's life."""
