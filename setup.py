"""What pyproject.toml cannot say: a wheel carries `configs/` and `launch/` inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["provscale*"]), "provscale.configs", "provscale.launch"],
    package_dir={"provscale.configs": "configs", "provscale.launch": "launch"},
    package_data={"provscale.configs": ["**/*.yaml"], "provscale.launch": ["**/*.yaml", "**/*.json"]},
)
