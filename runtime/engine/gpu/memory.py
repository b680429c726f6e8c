"""What an engine has reserved of a device, given back as a whole."""

from ...cuda import CudaError
from .device import Device


class Memory:
    """Memory of one engine; it outlives no engine, however that ends."""

    def __init__(self, device: Device) -> None:
        """Begin with none."""
        self.device = device
        self._addresses: set[int] = set()

    def allocate(self, size_bytes: int) -> int:
        """Reserve memory and give its address.

        Raises:
            CapacityError: there is not that much.
        """
        address = self.device.allocate(size_bytes)
        self._addresses.add(address)
        return address

    def free(self, address: int) -> None:
        """Give one piece back, when all work before is done."""
        self._addresses.remove(address)
        self.device.free(address)

    def free_all(self) -> None:
        """Give everything back, when all work before is done; a lost device has nothing to take."""
        try:
            with self.device.active():
                while self._addresses:
                    self.device.free(self._addresses.pop())
        except CudaError:
            self._addresses.clear()
