"""A camera, a video file or recorded clips as `image_raw` and `camera_info`. Any other camera driver replaces it."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from world_gymnast_ros.config import CameraConfig
from world_gymnast_ros.errors import BadConfig, BadFrame
from world_gymnast_ros.nodes import base, command_line, convert
from world_gymnast_ros.nodes.clips import Device, clip_frames, device_path, list_clips
from world_gymnast_ros.robot import camera_file
from world_gymnast_ros.types import U8

KEPT = "file://${{ROS_HOME}}/camera_info/{}.yaml"
"""Where a calibration is kept if camera_info_url names no place: camera_info_manager's own."""


class CameraNode(base.ConfiguredNode):
    """Publishes at `rate_hz`; ends with code 1 when a device falls silent, 0 after the last image of clips."""

    def __init__(self) -> None:
        super().__init__("camera_node")
        self.config = c = self.read_config(CameraConfig)
        if not c.source:
            raise BadConfig("source is empty; set it to a camera index such as 0, a video file or a folder of clips")
        self._images = self.create_publisher(convert.Image, "image_raw", base.NEWEST_RELIABLE)
        self._infos = self.create_publisher(convert.CameraInfo, "camera_info", base.NEWEST_RELIABLE)
        self._calibration = camera_file.read(camera_file.path_of(c.camera_info_url)) if c.camera_info_url else None
        self.create_service(convert.SetCameraInfo, "set_camera_info", self._on_set_camera_info)
        self._last_ns = base.steady_ns()
        self._rivals = 1
        self.every(1.0, self._on_rivals)
        if device := device_path(c.source):
            self._device = Device(device, c.width, c.height)
            self.every(1.0 / c.rate_hz, self._on_device)
        else:
            self._clips = list_clips(c.source)
            self._frames = self._play()
            self.every(1.0 / c.rate_hz, self._on_clip)
            self.get_logger().info(f"{len(self._clips)} clips from {c.source} at {c.rate_hz:g} Hz")

    def _on_rivals(self) -> None:
        """Tell, when their number changes, that other cameras publish the same topic: their images mix with ours."""
        count = self.count_publishers("image_raw")
        if count > 1 and count != self._rivals:
            self.get_logger().error(f"{count} publishers of {self._images.topic_name}: images of several cameras are "
                                    "mixed; end all but one, or remap one of them")
        self._rivals = count

    def _play(self) -> Iterator[U8]:
        while True:
            for clip in self._clips:
                yield from clip_frames(clip)
            if not self.config.loop:
                return

    def _on_clip(self) -> None:
        try:
            rgb = next(self._frames, None)
        except BadFrame as error:
            self.get_logger().fatal(str(error))
            raise base.NodeDone(1) from error
        if rgb is None:
            self.get_logger().info("last image sent")
            raise base.NodeDone(0)
        self._publish(rgb, self.now_ns())

    def _on_device(self) -> None:
        frame = self._device.take()
        if frame is not None:
            self._last_ns = base.steady_ns()
            self._publish(frame.rgb, frame.stamp_ns)
        elif self._device.error is not None or base.steady_ns() - self._last_ns > self.config.max_gap_s * 1e9:
            self.get_logger().fatal(f"camera {self.config.source} gave no image for {self.config.max_gap_s:g} s "
                                    f"({self._device.error}); check cable and power, then start the node again")
            raise base.NodeDone(1)

    def _publish(self, rgb: U8, stamp_ns: int) -> None:
        frame_id, (height, width) = self.config.frame_id, rgb.shape[:2]
        self._images.publish(convert.image_from_rgb(rgb, stamp_ns, frame_id))
        self._infos.publish(convert.camera_info(stamp_ns, frame_id, width, height, self._intrinsics(width, height)))

    def _intrinsics(self, width: int, height: int) -> camera_file.Intrinsics | None:
        """Return the calibration for images of this size. Raises BadConfig, which ends the node, if it cannot be."""
        if self._calibration is None:
            focal = self.config.focal_px * height / self.config.height
            return camera_file.pinhole(focal, width, height) if focal else None
        return self._calibration.at(width, height)

    def _on_set_camera_info(self, request: Any, response: Any) -> Any:
        """Use a calibration from now on, and keep it in a file, as camera_info_manager does."""
        path = camera_file.path_of(self.config.camera_info_url or KEPT.format(self.get_name()))
        try:
            calibration = convert.intrinsics_from_msg(request.camera_info, self.get_name())
            camera_file.write(path, calibration)
        except (BadConfig, OSError) as error:
            response.success, response.status_message = False, f"not taken: {error}"
            return response
        self._calibration = calibration
        more = "" if self.config.camera_info_url else f"; set camera_info_url:=file://{path} to use it again"
        response.success, response.status_message = True, f"in use, and kept in {path}{more}"
        self.get_logger().info(f"calibration {response.status_message}")
        return response


USAGE = command_line.Usage(
    name="camera_node",
    doc="""\
Publishes a camera, a video file or a folder of clips as image_raw and camera_info.""",
    parameters=CameraConfig,
    moves="No.",
    examples=(
        ("--ros-args -p source:=0", "the first camera of this machine"),
        ("--ros-args -p source:=FOLDER -p rate_hz:=5.0",
         "the clips of a folder in the order of their names, again and again"),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the node."""
    return base.run(CameraNode, argv, usage=USAGE)


if __name__ == "__main__":
    raise SystemExit(main())
