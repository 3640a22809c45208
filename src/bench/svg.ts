/** Text for HTML and for attributes in quotes. */
export function escapeHtml(text: string): string {
  const entities: Record<string, string> = {'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;'}
  return text.replace(/[&<>"']/g, character => entities[character]!)
}

export interface Axis {
  label: string
  scale: 'linear' | 'log'
  /** A value in words. */
  format: (value: number) => string
  /** Where lines are drawn; default: chosen for the values. */
  ticks?: number[]
}

export interface Line {
  name: string
  points: {x: number; y: number; label?: string}[]
  /** With a dot at each point. */
  dots?: boolean
}

export interface Chart {
  title: string
  x: Axis
  y: Axis
  lines: Line[]
}

const [width, height] = [760, 300]
const margin = {top: 16, right: 32, bottom: 44, left: 84}
// Told apart also without colours by most eyes (Okabe and Ito).
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9']

/** A chart of lines as one inline SVG, which needs nothing from elsewhere. Empty where there is nothing to draw. */
export function lineChart({title, x, y, lines}: Chart): string {
  const drawable = lines.map(line => ({
    ...line,
    points: line.points.filter(point => isDrawable(point.x, x) && isDrawable(point.y, y)),
  }))
  const points = drawable.flatMap(line => line.points)
  if (points.length === 0) return ''
  const across = scaleOf(
    x,
    points.map(point => point.x),
    [margin.left, width - margin.right],
  )
  const up = scaleOf(
    y,
    points.map(point => point.y),
    [height - margin.bottom, margin.top],
  )
  const grid = [
    ...across.ticks.map(value => tick(across.at(value), 'x', x.format(value))),
    ...up.ticks.map(value => tick(up.at(value), 'y', y.format(value))),
  ]
  const drawn = drawable.flatMap(({points, dots}, index) => {
    const colour = colours[index % colours.length]!
    const path = points.map(point => `${round(across.at(point.x))},${round(up.at(point.y))}`).join(' ')
    const marks = dots
      ? points.map(point => {
          const words = point.label ?? `${x.format(point.x)}: ${y.format(point.y)}`
          return `<circle cx="${round(across.at(point.x))}" cy="${round(up.at(point.y))}" r="3.5" fill="${colour}"><title>${escapeHtml(words)}</title></circle>`
        })
      : []
    return [`<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="1.8"/>`, ...marks]
  })
  const legend = drawable.map(
    ({name}, index) => `<span style="color:${colours[index % colours.length]}">━</span> ${escapeHtml(name)}`,
  )
  return [
    `<figure><figcaption>${escapeHtml(title)}</figcaption>`,
    // Text of the page, which finds its own lines: names may be long, and many.
    ...(drawable.length > 1 ? [`<p class="legend">${legend.join(' &ensp; ')}</p>`] : []),
    `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(title)}">`,
    ...grid,
    ...drawn,
    `<text x="${(margin.left + width - margin.right) / 2}" y="${height - 6}" text-anchor="middle">${escapeHtml(x.label)}</text>`,
    `<text x="14" y="${height / 2}" text-anchor="middle" transform="rotate(-90 14 ${height / 2})">${escapeHtml(y.label)}</text>`,
    '</svg></figure>',
  ].join('\n')
}

function isDrawable(value: number, {scale}: Axis): boolean {
  return Number.isFinite(value) && (scale === 'linear' || value > 0)
}

interface Scale {
  ticks: number[]
  at(value: number): number
}

function scaleOf({scale, ticks: given}: Axis, values: number[], [from, to]: [number, number]): Scale {
  const forward = scale === 'log' ? Math.log10 : (value: number) => value
  let least = values.reduce((a, b) => Math.min(a, b))
  let most = values.reduce((a, b) => Math.max(a, b))
  // A linear axis of quantities begins at zero, so that a small change does not look large.
  if (scale === 'linear') least = Math.min(0, least)
  if (least === most) most = least === 0 ? 1 : least * 2
  const [low, high] = [forward(least), forward(most)]
  const inside = (value: number) => value >= least * (1 - 1e-9) && value <= most * (1 + 1e-9)
  const ticks = (given ?? (scale === 'log' ? logTicks(least, most) : linearTicks(least, most))).filter(inside)
  return {ticks, at: value => from + ((forward(value) - low) / (high - low)) * (to - from)}
}

function linearTicks(least: number, most: number): number[] {
  const rough = (most - least) / 5
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough)!
  const ticks: number[] = []
  for (let index = Math.ceil(least / step); index * step <= most; index++) ticks.push(index * step)
  return ticks
}

/** Powers of ten; with 2 and 5 between them where they would be few. */
function logTicks(least: number, most: number): number[] {
  const factors = Math.log10(most / least) > 2 ? [1] : [1, 2, 5]
  const ticks: number[] = []
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++)
    for (const factor of factors) ticks.push(factor * 10 ** power)
  return ticks
}

function tick(position: number, axis: 'x' | 'y', words: string): string {
  const at = round(position)
  if (axis === 'x') {
    return `<line class="grid" x1="${at}" y1="${margin.top}" x2="${at}" y2="${height - margin.bottom}"/><text x="${at}" y="${height - margin.bottom + 16}" text-anchor="middle">${escapeHtml(words)}</text>`
  }
  return `<line class="grid" x1="${margin.left}" y1="${at}" x2="${width - margin.right}" y2="${at}"/><text x="${margin.left - 8}" y="${at + 4}" text-anchor="end">${escapeHtml(words)}</text>`
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}
