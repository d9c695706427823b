/** Questions to whoever sits at the terminal, by the library whose lists show a run there. */
import type { ListrInquirerPromptAdapter } from '@listr2/prompt-adapter-inquirer'
import { Listr } from 'listr2'

/** What a run was stopped by, and how to go on. A program that it ends has the exit code 130. */
export class Stopped extends Error {
  override name = 'Stopped'
}

export const AT_A_QUESTION = 'Stopped at a question: nothing was changed'

/** Asks whether to go on. */
export async function confirm(message: string): Promise<boolean> {
  const { confirm } = await import('@inquirer/prompts')
  return await ask(message, (prompt) => prompt.run(confirm, { message }))
}

/** Has one of several names chosen. */
export async function select(message: string, names: readonly string[]): Promise<string> {
  const { select } = await import('@inquirer/prompts')
  const choices = names.map((name) => ({ name, value: name }))
  return await ask(message, (prompt) => prompt.run(select<string>, { message, choices }))
}

async function ask<T extends string | boolean>(
  message: string,
  question: (prompt: ListrInquirerPromptAdapter) => Promise<T | Promise<T>>,
): Promise<T> {
  // loaded for who is asked: it takes a tenth of a second
  const { ListrInquirerPromptAdapter } = await import('@listr2/prompt-adapter-inquirer')
  let answer: { is: T } | undefined
  const list = new Listr<object>([{
    task: async (_, task) => {
      answer = { is: await question(task.prompt(ListrInquirerPromptAdapter)) }
    },
  }], { rendererOptions: { clearOutput: true } })
  try {
    await list.run()
  } catch (error) {
    // known by its name in the library's own documentation
    if ((error as Error).name !== 'ExitPromptError') throw error
    throw new Stopped(AT_A_QUESTION)
  }
  const { is } = answer as unknown as { is: T }
  // the list takes the question away with itself
  console.log(`? ${message} ${typeof is === 'string' ? is : is ? 'Yes' : 'No'}`)
  return is
}
