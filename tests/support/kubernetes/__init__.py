"""A Kubernetes cluster for tests: the real control plane, and machines that run pods as processes in namespaces (world.py).

What a kubelet, a network plugin, kube-proxy, a name server and a provisioner of disks do is done here as far as the chart needs it:
nothing of the chart or of quorumq is known here.
"""
