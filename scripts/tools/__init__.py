"""What the scripts in the folder above run, and the local cluster that they share with the tests."""
