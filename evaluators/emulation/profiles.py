"""The CPUs that can be emulated: what qemu is told, and the /proc/cpuinfo by which libraries choose their kernels.

Both must agree: XNNPACK takes features and micro-architecture from cpuinfo, and a feature that qemu lacks ends in SIGILL.
"""

from dataclasses import dataclass

V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
V8_2 = f"{V8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Profile:
    """One core. `variant`, `part` and `revision` are the fields of Arm's MIDR register."""

    title: str
    qemu: str
    features: str
    variant: int
    part: int
    revision: int
    about: str

    def cpuinfo(self) -> str:
        """The guest's /proc/cpuinfo. One processor, so that no library starts a second thread: counts are exact on one."""
        return (
            f"processor\t: 0\nBogoMIPS\t: 52.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.variant:#x}\nCPU part\t: {self.part:#x}\nCPU revision\t: {self.revision}\n\n"
        )


PROFILES = {
    "cortex-a53": Profile("Cortex-A53", "cortex-a53", f"{V8} cpuid", 0, 0xD03, 4, "small cores of most phones; no dot product"),
    "cortex-a72": Profile("Cortex-A72", "cortex-a72", f"{V8} cpuid", 0, 0xD08, 3, "Raspberry Pi 4; no dot product"),
    "cortex-a76": Profile("Cortex-A76", "cortex-a76", V8_2, 4, 0xD0B, 1, "big cores since 2019, Raspberry Pi 5; SDOT"),
    # not plain `max`: its SME kernels compute wrong int8 results in qemu 7.2
    "armv8.6": Profile("Armv8.6", "max,sve=off,sme=off", f"{V8_2} asimdfhm i8mm bf16", 2, 0xD47, 0, "big cores since 2022 (Cortex-A710); SDOT and SMMLA"),
}
