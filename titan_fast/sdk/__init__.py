"""The SDK: clients of a master. Importing it loads neither master nor worker nor scheduler."""
