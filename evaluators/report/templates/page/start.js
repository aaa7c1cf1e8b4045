"use strict";
render();
