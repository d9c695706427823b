import { equal } from 'node:assert/strict'
import process from 'node:process'
import { suite } from 'uvu'
import { farFolder, joinHost, localFolder } from '../../../recipes/run/host.ts'

const paths = suite('a folder of a host')

paths('is written as the host writes paths', async () => {
  const there = (folder: string) => joinHost(farFolder(folder), 'a b.vhdx')
  equal(there('D:\\VMs'), 'D:\\VMs\\a b.vhdx')
  equal(there('d:/My VMs/'), 'd:\\My VMs\\a b.vhdx')
  equal(there('\\\\nas\\VMs'), '\\\\nas\\VMs\\a b.vhdx')
  equal(there('//nas/VMs'), '\\\\nas\\VMs\\a b.vhdx')
  equal(there('\\\\?\\D:\\VMs'), '\\\\?\\D:\\VMs\\a b.vhdx')
  equal(there(`D:\\${'x'.repeat(300)}`), `D:\\${'x'.repeat(300)}\\a b.vhdx`)
  equal(there('/srv/VMs'), '/srv/VMs/a b.vhdx')
  if (process.platform === 'win32') {
    equal(await localFolder('//nas/VMs'), '\\\\nas\\VMs')
    equal(await localFolder('d:/VMs'), 'd:/VMs')
  }
})

paths.run()
