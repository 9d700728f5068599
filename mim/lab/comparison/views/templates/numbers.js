// Arithmetic of the chart: means of lines, round numbers for axes, and numbers as text.
"use strict";

const numbers = (() => {
  const PREFIXES = [[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"], [1e12, "T"], [1e15, "P"], [1e18, "E"], [1e21, "Z"]];
  const TIMES = [[1, "s"], [60, "min"], [3600, "h"], [86400, "d"]];
  const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 43200, 86400]; // s

  const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

  // The value of a line at a position, by linear interpolation; null beyond its ends.
  function read(line, x) {
    let [low, high] = [0, line.length - 1];
    if (x < line[low][0] || x > line[high][0]) return null;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (line[middle][0] <= x) low = middle;
      else high = middle;
    }
    const [left, bottom] = line[low];
    const [right, top] = line[high];
    return right === left || x === left ? bottom : bottom + ((top - bottom) * (x - left)) / (right - left);
  }

  const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // Positions and the values of all lines there: point by point where they have as many, else wherever one has a point
  // and all have values.
  function together(lines) {
    if (lines.every((line) => line.length === lines[0].length)) {
      return lines[0].map((_, index) => [average(lines.map((line) => line[index][0])), lines.map((line) => line[index][1])]);
    }
    const positions = [...new Set(lines.flat().map(([x]) => x))].sort((a, b) => a - b);
    return positions.map((x) => [x, lines.map((line) => read(line, x))]).filter(([, values]) => !values.includes(null));
  }

  // The mean of lines, and the line of their lowest and of their highest values.
  const mean = (lines) => together(lines).map(([x, values]) => [x, average(values)]);
  const ends = (lines) => [Math.min, Math.max].map((end) => together(lines).map(([x, values]) => [x, end(...values)]));

  const rung = (ladder, size) => ladder.findLast(([least]) => size >= least) ?? ladder[0];
  const trim = (number) => String(Number(number.toPrecision(3)));
  const digits = (step) => Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));

  // At most `most` round numbers within low..high.
  function ticks(low, high, most, steps = []) {
    const least = (high - low) / Math.max(most, 1);
    const power = 10 ** Math.floor(Math.log10(least));
    const decimal = [1, 2, 5, 10].map((share) => share * power).find((step) => step >= least * (1 - 1e-9));
    const step = steps.find((candidate) => candidate >= least && least > 0.5) ?? decimal;
    const values = [];
    for (let number = Math.ceil(low / step - 1e-9); number <= high / step + 1e-9; number += 1) values.push(number * step);
    return values;
  }

  // Round numbers for a log scale, as many as there is room for; those of a linear one where it spans little.
  function powers(low, high, most) {
    for (const shares of [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1]]) {
      const values = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        values.push(...shares.map((share) => Number((share * 10 ** power).toPrecision(3))));
      }
      const within = values.filter((tick) => tick >= low && tick <= high);
      if (within.length < 3) break;
      if (within.length <= most) return within;
    }
    return ticks(low, high, most).filter((tick) => tick > 0);
  }

  // A position on the axis as text; all ticks have the unit of the largest.
  function amount(axis, x, largest = x) {
    if (x === 0) return "0";
    if (axis === "seconds") {
      const [size, unit] = rung(TIMES, largest / 2);
      return `${trim(x / size)} ${unit}`;
    }
    const [size, prefix] = rung(PREFIXES, axis === "flops" ? largest : x);
    return axis === "flops" ? `${trim(x / size)} ${prefix}FLOP` : `${trim(x / size)}${prefix}`;
  }

  return { extent, read, mean, ends, trim, digits, ticks, powers, amount, STEPS };
})();
