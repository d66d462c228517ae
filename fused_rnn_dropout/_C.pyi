compiler: str
