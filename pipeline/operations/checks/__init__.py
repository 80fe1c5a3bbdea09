"""What `doctor` looks at on this machine: Python, memory, disks, ports, GPUs.

Out: findings with a status and one line each. Begin with `machine.py`.
"""
