package main

func (m *machine) shellOnRequest() {}
