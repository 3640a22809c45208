const bars = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']

/** The last `width` values as a line of bars from zero to the largest of them. */
export function sparkline(values: number[], width: number): string {
  const shown = values.slice(-width)
  const largest = Math.max(...shown, Number.MIN_VALUE)
  return shown.map(value => bars[Math.min(bars.length - 1, Math.floor((value / largest) * bars.length))]).join('')
}
