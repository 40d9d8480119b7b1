"""launch/prepare-imagenet: sort a downloaded ImageNet into the folders that `--data.name imagenet` reads."""
