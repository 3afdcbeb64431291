import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export interface Snippet {
  /** What stands behind the fence: `ts`, `sql`, `sh`, `text`. */
  language: string
  text: string
}

/** The text of README.md. */
export const readme = readFileSync(fileURLToPath(new URL('../README.md', import.meta.url)), 'utf8')

/** The code blocks of README.md, in their order. */
export function readmeSnippets(): Snippet[] {
  return [...readme.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(([, language = '', text = '']) => ({
    language,
    text,
  }))
}

/** Takes the first block of that language with `part` in it out of `snippets`, and answers its text. */
export function takeSnippet(snippets: Snippet[], language: string, part: string): string {
  const index = snippets.findIndex((block) => block.language === language && block.text.includes(part))
  const [block] = index < 0 ? [] : snippets.splice(index, 1)
  if (!block) throw new Error(`README.md has no ${language} block with "${part}"`)
  return block.text
}
