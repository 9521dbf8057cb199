"""TEMPORARY (lead): to be overwritten by the helper who owns this file."""
def write_report(folder: str) -> str: return folder
