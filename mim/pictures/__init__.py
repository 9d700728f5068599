"""Reporting: pictures and tables for people."""
