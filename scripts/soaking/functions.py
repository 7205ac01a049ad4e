"""The functions that are deployed, and their files."""

from dataclasses import dataclass

# Time limit of a call, and what a call asks for that is to be over it, in seconds.
TIMEOUT_S = 6
TOO_LONG_S = 8
# Caps that are reached soon.
DISK_MIB = 16
NAMESPACE = "team"


@dataclass(frozen=True)
class Function:
    number: int
    platform: str
    concurrency: int
    provisioned: int
    max_instances: int

    @property
    def name(self):
        return f"f{self.number:02}"

    @property
    def namespace(self):
        return "default" if self.platform == "fc" else NAMESPACE

    @property
    def socket(self):
        return f"{self.name}.sock" if self.platform == "fc" else f"{self.namespace}.{self.name}.sock"

    def deployment(self, image):
        """What POST /v1/functions takes."""
        lines = [
            f'name = "{self.name}"',
            f'image = "{image}"',
            f'platform = "{self.platform}"',
            f"concurrency = {self.concurrency}",
            'memory = "128MiB"',
            f"timeout = {TIMEOUT_S}",
            f'writable_size = "{DISK_MIB}MiB"',
            f'tmp_size = "{DISK_MIB}MiB"',
        ]
        if self.platform != "fc":
            lines.append(f'namespace = "{self.namespace}"')
        scaling = {"max_instances": self.max_instances, "provisioned": self.provisioned}
        return {"file": "\n".join(lines) + "\n", "name": f"{self.name}.toml", "scaling": scaling}


def plan(functions, instances):
    """So many functions of all platforms, with so many instances that are there without a call."""
    made = []
    for number in range(functions):
        share = (number + 1) * instances // functions - number * instances // functions
        platform = ("fc", "scf", "fc2", "scf")[number % 4]
        concurrency = 1 if number % 3 else 8
        made.append(Function(number, platform, concurrency, share, share + 4))
    return made
