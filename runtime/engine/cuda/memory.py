"""What an engine has reserved of a device, given back as a whole."""

from ...cuda import CudaError
from ..trt.device import Device


class Memory:
    """Memory of one engine; it outlives no engine, however that ends."""

    def __init__(self, device: Device) -> None:
        """Begin with none."""
        self.device = device
        self._addresses: list[int] = []

    def allocate(self, size_bytes: int) -> int:
        """Reserve memory and give its address.

        Raises:
            CapacityError: there is not that much.
        """
        address = self.device.allocate(size_bytes)
        self._addresses.append(address)
        return address

    def free(self) -> None:
        """Give everything back, when all work before is done; a lost device has nothing to take."""
        try:
            with self.device.active():
                while self._addresses:
                    self.device.free(self._addresses.pop())
        except CudaError:
            self._addresses.clear()
