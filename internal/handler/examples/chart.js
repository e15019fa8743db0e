#!/usr/bin/env node
// A persistent program: draws numbers, separated by spaces or commas, as a line in SVG.
//
//   systemd/install queue --persistent chart /usr/local/bin/chart.js
//   curl -d text='3 1 4 1 5 9' http://localhost:8081/queue/chart
//   document.body.innerHTML = message.text
"use strict";
const readline = require("node:readline");

const [width, height] = [300, 100];

function chart(text) {
  const numbers = text.split(/[\s,]+/).filter(Boolean).map(Number);
  if (numbers.length < 2 || !numbers.every(Number.isFinite)) throw new Error("give two numbers or more");
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const points = numbers.map((n, i) => {
    const x = (i / (numbers.length - 1)) * width;
    const y = height - ((n - low) / (high - low || 1)) * height;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}">` +
    `<polyline fill="none" stroke="black" points="${points.join(" ")}"/></svg>`;
}

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");

say({ revq: 1 });
let greeted = false;
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  if (!greeted) return (greeted = true); // the worker's greeting
  const task = JSON.parse(line);
  try {
    say({ id: task.id, text: chart(task.text) });
  } catch (e) {
    say({ id: task.id, error: e.message, retry: "no" });
  }
});
