"use strict";
translate();
