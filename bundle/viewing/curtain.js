// One viewer, two images of one size: `before` lies over `after` and is cut at a line that the mouse moves.
// Both are OpenSeadragon tile sources; the line stays where it is on the screen while the image moves under it.
"use strict";

function openCurtain(element, before, after) {
  const viewer = OpenSeadragon({
    element: element,
    tileSources: [after, before],
    collectionMode: false,
    drawer: "canvas",
    showNavigationControl: false,
    maxZoomPixelRatio: 8,
    imageSmoothingEnabled: true,
    gestureSettingsMouse: { clickToZoom: false },
  });
  const handle = document.createElement("div");
  handle.className = "curtain-handle";
  handle.setAttribute("role", "slider");
  handle.setAttribute("aria-label", "curtain");
  handle.tabIndex = 0;
  element.appendChild(handle);
  let share = 0.5;  // of the viewer's width that shows `before`

  function cut() {
    handle.style.left = 100 * share + "%";
    handle.setAttribute("aria-valuenow", Math.round(100 * share));
    const over = viewer.world.getItemAt(1);
    if (!over) {
      return;
    }
    const size = over.getContentSize();
    const edge = viewer.viewport.pointFromPixel(new OpenSeadragon.Point(share * element.clientWidth, 0), true);
    const column = Math.min(size.x, Math.max(0, over.viewportToImageCoordinates(edge, true).x));
    // A clip without width would count as none: the image is hidden instead.
    over.setOpacity(column > 0 ? 1 : 0);
    over.setClip(new OpenSeadragon.Rect(0, 0, Math.max(column, 1), size.y));
  }

  function move(to) {
    share = Math.min(1, Math.max(0, to));
    cut();
  }

  new OpenSeadragon.MouseTracker({
    element: handle,
    dragHandler: (event) => move(share + event.delta.x / element.clientWidth),
    keyDownHandler: (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.originalEvent.key];
      if (step) {
        move(share + step);
        event.preventDefault = true;
      }
    },
  });
  for (const name of ["open", "viewport-change", "animation", "resize", "add-item"]) {
    viewer.addHandler(name, () => (name === "add-item" && viewer.world.getItemCount() < 2 ? null : cut()));
  }
  viewer.moveCurtain = move;
  return viewer;
}
