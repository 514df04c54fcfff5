// The page of `mop view`: tiles of 256 px by their level, as the server renders them.
"use strict";

const held = document.getElementById("curtain");
const pair = JSON.parse(held.dataset.pair);

function slide(which) {
  return {
    width: pair.width,
    height: pair.height,
    tileSize: pair.tile_px,
    tileOverlap: 0,
    minLevel: pair.min_level,
    maxLevel: pair.max_level,
    getTileUrl: (level, x, y) => `/tiles/${which}/${level}/${x}_${y}.jpg`,
  };
}

openCurtain(held, slide("before"), slide("after"));
